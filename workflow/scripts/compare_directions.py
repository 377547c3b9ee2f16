"""Compare a checkpoint's refusal direction with the original's."""

from aird.activation_cache import kept_activations, load_cache
from aird.activations import difference_in_means
from aird.comparison import bootstrap_cosine, cosine, cosine_and_norm_grids, projections, split_half_null
from aird.files import read_json, write_json
from aird.tensor_files import load_tensors

from arguments import parse


def main() -> None:
    """Run the script."""
    arguments = parse(
        __doc__,
        paths="original_cache original_direction original_record cache direction record output",
        texts="seed",
    )
    seed = int(arguments.seed)
    original_cache, cache = load_cache(arguments.original_cache), load_cache(arguments.cache)
    original_unit, unit = (
        load_tensors(path)[0]["unit"] for path in (arguments.original_direction, arguments.direction)
    )
    original_record, record = read_json(arguments.original_record), read_json(arguments.record)
    layer, position = original_record["layer"], original_record["position"]

    differences = [difference_in_means(*kept_activations(each, "train")) for each in (original_cache, cache)]
    # All prompts here, filtered by neither model: a paired resample needs the same prompts in both.
    original_site, site = (
        (
            each["harmful", "train"].activations[:, layer, position],
            each["harmless", "train"].activations[:, layer, position],
        )
        for each in (original_cache, cache)
    )
    same_site = [difference[layer, position] for difference in differences]
    comparison = {
        "site": {"layer": layer, "position": position},
        "own_site": {"layer": record["layer"], "position": record["position"]},
        "cosine_own_source": cosine(original_unit, unit),
        "cosine_same_site": cosine(*same_site),
        "cosine_same_site_bootstrap": bootstrap_cosine(original_site, site, seed),
        "split_half_null": split_half_null(*original_site, seed),
        "norm_ratio": (same_site[1].norm() / same_site[0].norm()).item(),
        "projections": {
            f"{kind}_on_{name}": projections(states, direction)
            for kind, states in zip(("harmful", "harmless"), site, strict=True)
            for name, direction in (("original", original_unit), ("own", unit))
        },
        "prompts": record["prompts"],
        "sites": cosine_and_norm_grids(*differences),
    }
    write_json(arguments.output, comparison)


if __name__ == "__main__":
    main()
