"""The tunesmith command as a module: python -m tunesmith.cli."""

from tunesmith.cli.app import app

if __name__ == "__main__":
    app(prog_name="tunesmith")
