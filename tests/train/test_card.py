"""What a model card says of figures that are given by hand."""

from edgekit.train.card import model_card

RECIPE = {
    "checkpoint": None,
    "losses": {"dispersion": {"variant": "angular"}, "rounding": None},
    "text": {"train": ["a.txt"], "held_out": ["b.txt"], "context": 16},
    "training": {"batch": 4},
}
RECORD = {
    "parameters": 1000,
    "tokens": 2000,
    "text_tokens": 500,
    "steps": 8,
    "seconds": 3.0,
    "held_out_loss": 2.0,
    "held_out_loss_before": 6.0,
    "held_out_perplexity": 7.4,
    "dispersion_cost": 1.25,
    "condensation": [{"layer": "embedding", "cosine": 0.125}, {"layer": "0", "cosine": 0.5}],
    "sweep_tokens": 64,
    "sweep": [
        {
            "recipe": "q4g32,head=q4g32",
            "method": "rtn",
            "bits_per_weight": 4.5,
            "perplexity": 7.5,
            "kld_mean": 0.01,
            "same_top": 0.9,
            "rep4": 0.1,
            "continued_tokens": 15,
            "reference_perplexity": 7.25,
            "reference_rep4": 0.05,
            "verdict": "coherent",
        }
    ],
}


def test_the_cost_of_dispersion_is_said_to_be_that_of_forward_and_backward():
    card = model_card("small", RECIPE, RECORD)
    assert (
        "| forward and backward with dispersion | 1.25 times as long as without; the optimizer's time is not counted |"
    ) in card
    assert "with dispersion" not in model_card("small", RECIPE, RECORD | {"dispersion_cost": None})


def test_the_last_layers_condensation_is_said_to_be_that_before_the_final_norm():
    card = model_card("small", RECIPE, RECORD)
    assert "the last layer's as the last block gives them, before the final norm.\n\n| layer | cosine |" in card


def test_the_float_model_stands_above_its_schemes():
    assert "| float |  |  | 7.25 | 0 | 100.0% | 0.05 |  |\n| q4g32,head=q4g32 | rtn |" in model_card(
        "small", RECIPE, RECORD
    )


def test_no_grid_is_none_and_no_layers_are_all():
    recipe = {**RECIPE, "losses": {"dispersion": {"layers": None}, "rounding": {"recipes": ["q4g32"], "grid": None}}}
    card = model_card("small", recipe, RECORD)
    assert "| dispersion | layers all |" in card and "| rounding | recipes q4g32, grid none |" in card
