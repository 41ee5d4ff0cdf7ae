"""`python -m reptrt`: the command line."""

from reptrt.pipeline.cli.main import main

main()
