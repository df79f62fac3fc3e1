"""The kinds of children, one file each. A new kind is one new file and no edit of another."""
