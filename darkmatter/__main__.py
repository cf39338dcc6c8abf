"""``python -m darkmatter``."""

from darkmatter.cli import main

main()
