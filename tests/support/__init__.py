"""What tests share, none of which is a test."""
