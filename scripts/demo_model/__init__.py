"""The drawn world of the demo model: portraits, captions and example characters."""
