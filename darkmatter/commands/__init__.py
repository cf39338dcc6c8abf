"""What the CLI's commands do, kept apart from how their options are spelled."""
