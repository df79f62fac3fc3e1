"""Children that are programs: processes that know nothing of otpy.

To read in this order: options (what may be said of a program), child (what the supervisor's
thread does), run (what the threads share), making (what a launcher does), attendance and
rest (what the watch does), watch, launcher, guard and guard_process (one of each for a
tree), output, lanes and logfiles (where output goes), probes, patterns and notify (how it
is known that a program is ready and well), exit and json_reports (how its end is reported).
"""
