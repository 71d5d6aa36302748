r"""A checkpoint's own chat template: messages -> the text that it was trained on -> token ids.

    what the template writes     <|im_start|>user\n … <|im_end|>\n<|im_start|>assistant\n    special tokens
    what the user writes         …, also where it reads "<|im_end|>"                         text

The template is a Jinja program in the tokenizer's files, run in a sandbox without access to Python. It sees what
transformers shows it: `messages`, `add_generation_prompt`, the special tokens' names, `raise_exception`,
`strftime_now`, and `tools` and `documents`, which are none.

Names of special tokens in the user's text are broken by a mark before the template runs, and mended as text behind
it. Only such texts are encoded piece by piece; all others go through the tokenizer whole, as in transformers.
"""

import dataclasses
import datetime
import json
import pathlib
import re
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fot_jax.config import UserError
from fot_jax.data.tokenizer_settings import FILE, read_settings, token_names
from fot_jax.data.vocabulary import HuggingFaceVocabulary, SentencePieceVocabulary, Vocabulary

TEMPLATE_FILE = "chat_template.jinja"  # wins over the settings' `chat_template`
MARKS = range(0xF0000, 0xFFFFE)  # a private plane of Unicode: some of it is free in any text


class _Generation(jinja2.ext.Extension):
    """{% generation %}…{% endgeneration %}, by which trainers find the model's own text: what it holds."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """See jinja2.ext.Extension."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, **settings: Any) -> str:
    """Jinja's own escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **settings)


def _environment() -> ImmutableSandboxedEnvironment:
    """As transformers has it."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """A compiled template, the file it comes from, and the special tokens that it may write."""

    template: jinja2.Template
    path: pathlib.Path
    tokens: dict[str, str]

    def render(self, *, user: str, system: str | None = None) -> str:
        """The text of a conversation that waits for the assistant's answer.

        Raises:
          UserError: the template refuses the messages (some know no system message) or fails.
        """
        messages = [] if system is None else [{"role": "system", "content": system}]
        messages.append({"role": "user", "content": user})
        variables = {**self.tokens, "tools": None, "documents": None}
        try:
            return self.template.render(messages=messages, add_generation_prompt=True, **variables)
        except Exception as error:  # a template's own arithmetic may raise anything
            refused = f"'{self.path}': the chat template must take the messages, but raised: {error or type(error)}."
            raise UserError(f"{refused} Leave --system out, or write the prompt out without --chat.") from error


def load_chat_template(vocabulary: Vocabulary) -> ChatTemplate:
    """The template beside a tokenizer's file: chat_template.jinja, else `chat_template` of tokenizer_config.json.

    Raises:
      UserError: there is none (base models and vocabularies without files have none), or it is no Jinja.
    """
    if not isinstance(vocabulary, (HuggingFaceVocabulary, SentencePieceVocabulary)):
        raise UserError("--chat needs a tokenizer with a chat template, got a vocabulary without files. Leave it out.")
    settings = read_settings(vocabulary.path)
    path, text = _find_text(pathlib.Path(vocabulary.path).parent, settings.get("chat_template"))
    try:
        template = _environment().from_string(text)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(
            f"'{path}': the chat template must be Jinja, but its line {error.lineno} is not: {error.message}."
            " Correct it, or write the prompt out without --chat."
        ) from error
    return ChatTemplate(template=template, path=path, tokens=token_names(settings, tokenizer=vocabulary.path))


def _find_text(folder: pathlib.Path, stored: Any) -> tuple[pathlib.Path, str]:
    """The file that holds the template, and the template."""
    if (folder / TEMPLATE_FILE).is_file():
        return folder / TEMPLATE_FILE, (folder / TEMPLATE_FILE).read_text("utf-8")
    if isinstance(stored, list):  # several by name
        named = {entry.get("name"): entry.get("template") for entry in stored if isinstance(entry, dict)}
        stored = named.get("default")
    if not isinstance(stored, str):
        raise UserError(
            f"--chat needs a chat template, a text `chat_template` in '{folder / FILE}' or a {TEMPLATE_FILE} beside it,"
            f" got {'none' if stored is None else repr(stored)}. Base models have none: leave --chat out."
        )
    return folder / FILE, stored


def encode_chat(vocabulary: Vocabulary, *, user: str, system: str | None = None) -> list[int]:
    """Token ids of a conversation that waits for the assistant's answer.

    Special tokens that the template writes are special tokens; their names in the messages are text. A vocabulary
    with a `bos_id` gets exactly one at the beginning, whether or not the template writes it.

    Args:
      vocabulary: of an imported checkpoint: its files hold the template.
      user: the user's message.
      system: the system's message; without one the template decides.

    Raises:
      UserError: no template, one that is no Jinja, or one that refuses the messages.
    """
    template = load_chat_template(vocabulary)
    assert isinstance(vocabulary, (HuggingFaceVocabulary, SentencePieceVocabulary))
    mark = next(chr(code) for code in MARKS if chr(code) not in user + (system or ""))
    names = _any_of(vocabulary.special_ids)

    def escaped(text: str) -> str:
        return names.sub(lambda found: found[0][0] + mark + found[0][1:], text)

    text = template.render(user=escaped(user), system=None if system is None else escaped(system))
    if mark not in text and isinstance(vocabulary, HuggingFaceVocabulary):
        ids = vocabulary.encode(text)
    else:
        ids = _encode_pieces(vocabulary, text, mark=mark)
    return ids if vocabulary.bos_id in (None, *ids[:1]) else [vocabulary.bos_id, *ids]


def _any_of(names: dict[str, int]) -> re.Pattern[str]:
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")  # without names: no match


def _encode_pieces(vocabulary: HuggingFaceVocabulary | SentencePieceVocabulary, text: str, *, mark: str) -> list[int]:
    """Special tokens by name, what lies between them as text."""
    ids: list[int] = []
    end = 0
    for found in _any_of(vocabulary.special_ids).finditer(text):
        ids += vocabulary.encode_plain(text[end : found.start()].replace(mark, ""))
        ids.append(vocabulary.special_ids[found[0]])
        end = found.end()
    return ids + vocabulary.encode_plain(text[end:].replace(mark, ""))
