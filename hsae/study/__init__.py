"""A study with people: what is asked (trials, design), the web app and its store, and how answers are scored."""
