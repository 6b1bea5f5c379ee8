"""DVC: stages, the cache, the remote, earlier versions of the data."""
