"""What was measured, as plain arrays with where they come from; and how it is stored."""
