"""`python -m benchmarks.gpu`: all that is to be measured on a GPU, in one command and 25 minutes."""
