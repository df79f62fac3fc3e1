"""Children that are programs: processes that know nothing of otpy."""
