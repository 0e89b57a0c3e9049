"""What samples are: a kind a file, one value that answers whatever the rest of the library asks of samples."""
