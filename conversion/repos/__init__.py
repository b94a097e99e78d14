"""Repos of any format that this project writes, read back tensor by tensor; `stored_repo.py` has the interface."""
