"""Whole texts, sampling and judging beside lm-evaluation-harness's own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import yaml
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import exact_match_fn
from lm_eval.filters.extraction import RegexFilter
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from tokenizers.processors import TemplateProcessing

from modelglue.evaluate.encoding import before_stop
from modelglue.evaluate.harness.model import HarnessModel, _settings
from modelglue.evaluate.huggingface import HuggingFaceModel
from modelglue.evaluate.kinds import Item, settings_of
from modelglue.evaluate.kinds.generate import Generate
from modelglue.evaluate.suites import gsm8k

# Lengths of texts, in bytes and tokens.
LONG = (510, 511, 512, 513, 900, 1200)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("opens", [False, True], ids=["as it is", "begins with BOS"])
def test_whole_texts_however_long_are_scored_as_by_the_harness(
    opens: bool, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = HuggingFaceModel.load(make_model(tmp_path / "m", seed=3))
    tokenizer = model.tokenizer
    if opens:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    assert tokenizer("x").input_ids[:-1] == [1] * opens
    # A token a byte, 512 in the context: one window, one that is just full, two, three.
    texts = ["", "x", *(("Say it again. " * 90)[:length] for length in LONG)]
    ours = HarnessModel(HuggingFaceModel(model.module, tokenizer))
    theirs = HFLM(pretrained=model.module, tokenizer=tokenizer, batch_size=4)
    requests = [Instance("loglikelihood_rolling", {}, (t,), n) for n, t in enumerate(texts)]
    expected = theirs.loglikelihood_rolling(requests, disable_tqdm=True)
    assert ours.loglikelihood_rolling(requests) == pytest.approx(expected, abs=1e-3)
    assert expected[-1] < expected[2] < -1000


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("do_sample", [{}, {"do_sample": False}, {"do_sample": True}])
@pytest.mark.parametrize("temperature", [{}, {"temperature": 0.0}, {"temperature": 0.7}])
def test_a_completion_is_sampled_where_the_harness_samples(
    do_sample: dict[str, bool], temperature: dict[str, float]
) -> None:
    asked = {"until": ["x"], **do_sample, **temperature}
    found = _settings(asked)
    theirs = normalize_gen_kwargs(asked)
    assert ("temperature" in found) == theirs["do_sample"]
    if theirs["do_sample"] and temperature:
        assert found["temperature"] == theirs["temperature"]


def test_maths_is_judged_as_by_strict_match() -> None:
    """The suite's settings, beside the filter and the metric of the harness's own definition."""
    place = Path(lm_eval.__file__).parent / "tasks/gsm8k/gsm8k.yaml"
    definition = yaml.safe_load(place.read_text())
    strict = definition["filter_list"][0]
    assert strict["name"] == "strict-match"
    extract = RegexFilter(regex_pattern=strict["filter"][0]["regex_pattern"])
    (metric,) = definition["metric_list"]
    keys = ("ignore_case", "ignore_punctuation", "regexes_to_ignore")
    rules = {key: metric[key] for key in keys}
    assert gsm8k.SETTINGS["stop"] == definition["generation_kwargs"]["until"]

    numbers = "2,018 2018 2018. 2018., 2018.,. 20.18 -2018 $2018 12018".split()
    forms = ["#### {}", "####{}", "####  {}", "so #### {} #### 7", "#### 7 #### {}", "#### {}x"]
    forms += ["{}", "#### {}\n\nQuestion: #### 7", "#### {}</s>", "#### ,{}", "#### {}\n."]
    written = [form.format(number) for form in forms for number in numbers]
    reference = "2000 + 18 = <<2000+18=2018>>2,018\n#### 2,018"
    (answers,) = extract.apply([[before_stop(w, gsm8k.SETTINGS["stop"]) for w in written]], [{}])
    expected = [
        exact_match_fn(references=[reference], predictions=[answer], **rules)["exact_match"]
        for answer in answers
    ]

    class Writing:
        parameters_stored = parameters_active = 0

        def generate(self, prompts: list[str], **_: Any) -> list[str]:
            return prompts

        loglikelihoods = text_likelihoods = None

    items = [Item(w, w, {"prompt": w, "answer": reference}) for w in written]
    settings = settings_of("generate", gsm8k.SETTINGS)
    measured = Generate().score(Writing(), items, settings, None)  # type: ignore[arg-type]
    assert measured.values == expected
    assert 10 < sum(expected) < len(expected) - 10
