"""What a user asks for about tokens: the `tokenizer` section and `chat_template` of a merge."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class TokenSource:
    """What models that lack a token are lent as its row; all of them, if `force`.

    Attributes:
        model: a model of the merge, as the configuration spells it, whose row of this token is
            lent; None leaves the choice to the usual rule.
        token: another token of `model`, whose row is lent instead.
        token_id: the same, by the token's number.
        zero: a row of zeros is lent; `model` is None then.
        force: also models that have the token get what is lent.
    """

    model: str | None = None
    token: str | None = None
    token_id: int | None = None
    zero: bool = False
    force: bool = False


@dataclass(frozen=True)
class TokenizerConfig:
    """The output's tokenizer.

    Attributes:
        source: "union", "base", a model of the merge as the configuration spells it, or another
            folder or model of the Hub; None where nothing was asked. In a `tokenizer` section that
            leaves it out it is "union".
        tokens: token → where its row comes from; tokens that the source lacks are added.
        pad_to_multiple_of: the number of rows is rounded up to a multiple.
        chat_template: "auto", the name of a known template or a Jinja template.
    """

    source: str | None = None
    tokens: Mapping[str, TokenSource] = field(default_factory=dict)
    pad_to_multiple_of: int | None = None
    chat_template: str | None = None
