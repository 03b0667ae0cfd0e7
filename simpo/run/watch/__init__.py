"""The processes of a run watch one another: where one is lost or hangs, the others end and say which."""
