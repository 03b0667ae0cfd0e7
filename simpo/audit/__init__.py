"""What training would see, before it sees it: tokens as they are scored, numbers, and checks that say what to do."""
