"""The running system: threads, mailboxes, signals, and the handle of a tree."""
