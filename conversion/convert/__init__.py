"""A checkpoint becomes a repo: the plan, leaf by leaf into shards, the manifest."""
