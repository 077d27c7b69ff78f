"""Published weights in other layouts to folders of transformers."""
