"""The command line: ``otpy``. Needs click and rich: ``pip install otpy[cli]``."""
