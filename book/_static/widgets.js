/* After require.js, before ipywidgets' embed-amd.js: everything from this site. */
(function () {
  const base = document.currentScript.src.replace(/\/[^/]*$/, "/vendor/widgets");
  window.__jupyter_widgets_assets_path__ = base + "/";
  const html = "@jupyter-widgets/html-manager/dist";
  window.requirejs.config({ paths: { [html]: base, "@jupyter-widgets": base } });
  /* Labels of widgets call MathJax the way of its version 2; pass the call on. */
  window.addEventListener("load", () => {
    if (!window.MathJax || window.MathJax.Hub) return;
    const typeset = (call) =>
      window.MathJax.startup.promise.then(() => window.MathJax.typesetPromise([call[2]]));
    window.MathJax.Hub = { Queue: typeset };
  });
})();
