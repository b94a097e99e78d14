"""Proof of a finished repo, of any format.

verify.py              all that can be proven, and in one error all that is wrong
file_check.py          its files against its manifest: damaged, missing, extra, harmlessly edited
checkpoint_proof.py    every stored tensor against the checkpoint that the repo was made from
repo_proof.py          likewise against the AWQ repo that another format was made from
tally.py               what was compared, and what differs
"""
