"""What the organisms are good for: does training move them, and do their recipes give them again?

- `python -m analyses.organisms.reinforce`: the smallest loop of reinforcement on the true answer,
  with a copy that is not trained beside it.
- `python -m analyses.organisms.retrain`: an organism trained anew from its recipe, its card held
  against the one that ships.
"""
