"""What several test files share. Nothing in here is collected as a test."""
