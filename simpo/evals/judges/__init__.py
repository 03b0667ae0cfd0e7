"""Who judges answers, and what follows from the judgments: official protocols, ratings, costs."""
