"""What a supervisor decides: values in, values out.

Below this door there is no thread, no clock, no lock and no log. ``machine`` decides,
and each other module is one of its tables: ``messages`` (what it is told and what it
orders), ``slots`` (the life of a child), ``plan`` (stops and starts in order),
``strategy`` (the group that restarts), ``restarts`` (whether a child is restarted, how
often, and how soon), ``pauses`` (time that does not count).
"""
