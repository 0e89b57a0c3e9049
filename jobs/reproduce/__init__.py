"""The paper's experiments: `python -m jobs.reproduce.table2 --quick`, all: `python -m jobs.reproduce`."""
