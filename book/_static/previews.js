/* Hover previews: Escape closes them, as everything that opens by itself should. */
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && window.tippy) window.tippy.hideAll();
});
