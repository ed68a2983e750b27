"""The subcommands of `minillm`: one short file each, listed in `minillm.app.main`."""
