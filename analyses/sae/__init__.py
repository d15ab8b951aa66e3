"""What dictionaries find where the truth is known, and what they find in a real small model.

- `python -m analyses.sae.ground_truth`: features of an organism's choice and of its strategies.
- `python -m analyses.sae.sizes`: the same for many small dictionaries.
- `python -m analyses.sae.steering`: steering the choice, beside random directions.
- `python -m analyses.sae.organisms`: the dictionaries of the organisms, trained anew.
- `python -m analyses.sae.smollm2`: a dictionary of SmolLM2-135M, its fork-selective features.
"""
