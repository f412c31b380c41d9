"""Model cards: the texts as Markdown templates, and the code that fills them in."""
