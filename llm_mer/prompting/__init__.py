"""What is asked, and in which words: tasks, languages, prompt templates and their rendering."""
