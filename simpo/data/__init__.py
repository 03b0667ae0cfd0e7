"""From the user's preference data to verified token ids: load and mix, normalise, render, tokenise."""
