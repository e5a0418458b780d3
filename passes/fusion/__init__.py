"""Rules of ``fuse``: one small file per family of patterns."""
