"""The clipcap command: one thin entry per subcommand, no work of its own."""
