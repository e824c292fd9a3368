"""`python -m tunesmith`: the command line. Not here: anything else. Called by the interpreter."""

from tunesmith.cli.main import main

if __name__ == "__main__":
    main()
