"""`python -m externalresource`: the command line, where its script is not on PATH."""

from externalresource.cli.main import main

main()
