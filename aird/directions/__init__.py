"""The refusal direction: chosen among candidates, verified, and compared with the original's.

One function per node, in this order; `search.search_direction` calls the first five on one loaded model:

    refusal_tokens.find_refusal_tokens         what the original's own refusals begin with
    activations.capture_activations            activations and candidate directions, kept in the activation cache
    candidate_scores.score_cached_candidates   what adding and ablating each candidate does
    cosmic.find_cosmic_direction               a second choice, by activations alone
    choice.choose_direction                    the direction
    verification.verify_direction              claim C1 on held-out prompts
    comparison.compare_directions              claim C2: was the direction kept, and its source site
    restoration.compare_restored               claim C5: does the original's come back in a patched checkpoint
"""
