"""The kinds of children: a file or a folder for each."""
