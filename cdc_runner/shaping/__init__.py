"""Row changes to net changes: what a target table must become after a segment."""
