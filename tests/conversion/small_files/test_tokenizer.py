"""SentencePiece's tokenizer.model -> Hugging Face files: a small model by hand, and the real vocabulary.

The real part fetches Gemma's vocabulary and the published tokenizer.json into a cache and skips where it cannot.

Run: pytest tests/conversion/small_files/test_tokenizer.py
"""

import json
import random
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import Tokenizer, models
from transformers import AutoProcessor, AutoTokenizer, Gemma3Config, Gemma3TextConfig, GemmaTokenizer

from conversion.errors import BadInput
from conversion.small_files.repo_files import write_tokenizer
from conversion.small_files.tokenizer import CHAT_TEMPLATE, Kind, read_sentencepiece, write_tokenizer_files
from real270m.fetch import Unavailable, published_tokenizer
from real270m.tokenizer_model import tokenizer_model_path
from tests.conversion.helpers.small_tokenizer import IDS, small_model

# --- a small model, its ids known by heart -------------------------------------------------------------------------


def small_config(**changes) -> Gemma3Config:
    image_tokens = {"boi_token_index": IDS["<start_of_image>"], "eoi_token_index": IDS["<end_of_image>"]}
    return Gemma3Config(
        text_config={"vocab_size": len(IDS) + 64, "max_position_embeddings": 2048},
        vision_config={"image_size": 56},
        mm_tokens_per_image=16,
        **{**image_tokens, "image_token_index": len(IDS), **changes},
    )


def save(model: ModelProto, folder: Path) -> Path:
    path = folder / "tokenizer.model"
    path.write_bytes(model.SerializeToString())
    return path


def convert(folder: Path, variant: str = "it", multimodal: bool = True) -> list[str]:
    paths = write_tokenizer_files(
        save(small_model(), folder), folder, variant=variant, multimodal=multimodal, config=small_config()
    )
    return sorted(path.name for path in paths if path.stat().st_size)


def test_reads_what_sentencepiece_wrote(tmp_path):
    pieces = read_sentencepiece(save(small_model(), tmp_path))
    assert [(p.text, p.score, p.kind) for p in pieces] == [(p.piece, p.score, p.type) for p in small_model().pieces]


def test_writes_the_files_of_each_variant(tmp_path):
    everything = ["chat_template.jinja", "preprocessor_config.json", "processor_config.json"]
    tokenizer = ["tokenizer.json", "tokenizer_config.json"]
    assert convert(tmp_path) == everything + tokenizer
    assert convert(tmp_path, variant="pt") == everything[1:] + tokenizer
    assert convert(tmp_path, multimodal=False) == everything[:1] + tokenizer
    assert convert(tmp_path, variant="pt", multimodal=False) == tokenizer


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("abc", ["a", "bc"]),  # the best pair first, not the leftmost
        (" ab", ["▁", "ab"]),
        ("ab a", ["ab", "▁a"]),
        ("a  b", ["a", "▁▁", "b"]),
        ("\n\n\n", ["\n\n", "\n"]),
        ("c<td>c", ["c", "<td>", "c"]),
        ("aé", ["a", "<0xC3>", "<0xA9>"]),
        ("<start_of_turn>a<image_soft_token>", ["<start_of_turn>", "a", "<image_soft_token>"]),
    ],
)
def test_small_model_by_hand(tmp_path, text, tokens):
    convert(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = IDS | {"<image_soft_token>": len(IDS)}
    assert tokenizer(text).input_ids == [IDS["<bos>"], *(ids[token] for token in tokens)]
    assert tokenizer.decode(tokenizer(text).input_ids) == f"<bos>{text}"


def test_text_only_knows_no_image_token(tmp_path):
    convert(tmp_path, multimodal=False)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == len(IDS)
    assert max(tokenizer("<image_soft_token>").input_ids) < len(IDS)


def test_a_text_models_tokenizer_may_have_the_pictures_token(tmp_path):
    """As Google's text models are published: one past the last row. No other token may lie there."""
    for name in ("source", "repo"):
        (tmp_path / name).mkdir()
    config = Gemma3TextConfig(vocab_size=5)
    for word, fits in (("<image_soft_token>", True), ("word", False)):
        vocabulary = models.WordLevel({"<unk>": 3, "<bos>": 2, word: 5}, "<unk>")
        Tokenizer(vocabulary).save(str(tmp_path / "source" / "tokenizer.json"))
        with nullcontext() if fits else pytest.raises(BadInput, match="last token is 5, the embedding has 5 rows"):
            write_tokenizer(tmp_path / "source", tmp_path / "repo", config, "it")
    assert (tmp_path / "repo" / "tokenizer.json").is_file()


def test_auto_processor_sees_an_image_and_a_turn(tmp_path):
    convert(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    tokenizer = processor.tokenizer
    assert tokenizer.model_max_length == 2048
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 1, 0)
    content = [{"type": "image", "image": Image.new("RGBA", (100, 30), "red")}, {"type": "text", "text": "abc"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    assert inputs["pixel_values"].shape == (1, 3, 56, 56)
    assert inputs["pixel_values"][0, :, 0, 0].tolist() == [1, -1, -1]
    assert (inputs["input_ids"] == len(IDS)).sum() == 16
    assert inputs["token_type_ids"].sum() == 16
    words = tokenizer.decode(inputs["input_ids"][0], skip_special_tokens=True)
    assert words == "user\n\n\n\n\nabc\nmodel\n"
    assert processor.chat_template == CHAT_TEMPLATE.read_text(encoding="utf-8")


# --- what is not Gemma's, and what is damaged ------------------------------------------------------------------------


def unigram(model):
    model.trainer_spec.model_type = model.trainer_spec.UNIGRAM


def no_bytes(model):
    model.trainer_spec.byte_fallback = False


def dummy_prefix(model):
    model.normalizer_spec.add_dummy_prefix = True


def whitespace_removed(model):
    model.normalizer_spec.ClearField("remove_extra_whitespaces")  # the format's default is true


def character_map(model):
    model.normalizer_spec.precompiled_charsmap = b"nfkc"


def spaces_kept(model):
    model.normalizer_spec.escape_whitespaces = False


def repeated_piece(model):
    model.pieces.add(piece="ab", score=-99)


def byte_lost(model):
    del model.pieces[IDS["<0x41>"]]


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (unigram, "model_type"),
        (no_bytes, "byte_fallback"),
        (dummy_prefix, "add_dummy_prefix is 1, expected 0"),
        (whitespace_removed, "remove_extra_whitespaces"),
        (character_map, "precompiled_charsmap"),
        (spaces_kept, "escape_whitespaces"),
        (repeated_piece, "'ab' comes more than once"),
        (byte_lost, "<0x41> is missing"),
    ],
)
def test_a_model_unlike_gemmas_is_refused(tmp_path, spoil, complaint):
    model = small_model()
    spoil(model)
    path = save(model, tmp_path)
    with pytest.raises(BadInput, match=complaint) as caught:
        read_sentencepiece(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("multimodal", "config", "complaint"),
    [
        (False, Gemma3TextConfig(vocab_size=len(IDS) - 1), f"{len(IDS)} tokens for {len(IDS) - 1} embedding rows"),
        (True, small_config(boi_token_index=255_999), "<start_of_image> is token .* expected 255999"),
        (True, small_config(image_token_index=7), "<image_soft_token> is token .* expected 7"),
    ],
)
def test_a_tokenizer_of_another_model_is_refused(tmp_path, multimodal, config, complaint):
    path = save(small_model(), tmp_path)
    with pytest.raises(BadInput, match=complaint):
        write_tokenizer_files(path, tmp_path, variant="it", multimodal=multimodal, config=config)


def test_a_tokenizer_without_turns_is_refused(tmp_path):
    model = small_model()
    model.pieces[IDS["<end_of_turn>"]].piece = "<over>"
    with pytest.raises(BadInput, match="has no <end_of_turn>"):
        write_tokenizer_files(save(model, tmp_path), tmp_path, variant="it", multimodal=True, config=small_config())


WHOLE = small_model().SerializeToString()


@settings(max_examples=300, deadline=None)
@given(length=st.integers(0, len(WHOLE) - 1))
def test_a_file_cut_short_is_refused(tmp_path_factory, length):
    path = tmp_path_factory.mktemp("cut") / "tokenizer.model"
    path.write_bytes(WHOLE[:length])
    with pytest.raises(BadInput, match=r"tokenizer\.model"):
        read_sentencepiece(path)


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=200))
def test_any_other_file_is_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("other") / "tokenizer.model"
    path.write_bytes(data)
    with pytest.raises(BadInput, match="not a SentencePiece model"):
        read_sentencepiece(path)


# --- the real vocabulary ------------------------------------------------------------------------------------------


@dataclass
class Real:
    model: Path  # SentencePiece model of the real vocabulary
    converted: GemmaTokenizer  # what we make of it, as transformers loads it
    ours: Path  # tokenizer.json
    published: Path  # tokenizer.json


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Real:
    try:
        model, published = tokenizer_model_path(), published_tokenizer()
    except Unavailable as reason:
        pytest.skip(str(reason))
    ours = tmp_path_factory.mktemp("gemma3")
    write_tokenizer_files(model, ours, variant="it", multimodal=True, config=Gemma3Config())
    return Real(model, AutoTokenizer.from_pretrained(ours), ours / "tokenizer.json", published / "tokenizer.json")


SENTENCES = [
    *r"""
The quick brown fox can't jump 12,345.67 lazy dogs... "Really?" -- yes!
Größe, Übermut & süße Äpfel: 3½ Pfund für 4,99 €.
Où est passé l'élève ? Ça m'étonne, cœur naïf.
El niño comió piñas; ¿cuántas? ¡Ocho!
Não há pão. Coração, ações, João.
Zażółć gęślą jaźń. Příliš žluťoučký kůň. Árvíztűrő tükörfúrógép.
Съешь же ещё этих мягких французских булок, да выпей чаю. Їжак ґрунт.
Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. Πού είναι;
أين المكتبة؟ الطقس جميل اليوم ٢٠٢٦. پژوهش گچ
איפה הספרייה? שָׁלוֹם
मैं हिन्दी सीख रहा हूँ। क्षत्रिय, ज्ञान १२३
আমি বাংলায় গান গাই। தமிழ் எழுத்துக்கள். తెలుగు లిపి. ಕನ್ನಡ. മലയാളം.
ภาษาไทยไม่มีช่องว่าง. ພາສາລາວ. မြန်မာဘာသာ. ភាសាខ្មែរ
日本語の文章です。カタカナ、ﾊﾝｶｸ、漢字「かっこ」
我能吞下玻璃而不傷身體。简体中文，标点！
다람쥐 헌 쳇바퀴에 타고파. ㅋㅋㅋ
Tiếng Việt có nhiều dấu: ặ ẫ ợ. Türkçe: ığüşöç İI.
ქართული ენა. Հայերեն լեզու. አማርኛ ቋንቋ. ᏣᎳᎩ. ᚠᚢᚦ
😀 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪 ❤️ 🫠 ☃️ ♠ 1️⃣
∑ₙ xⁿ/n! = eˣ, ∀ε>0 ∃δ; 10⁻³ µm ≈ ½ ℏω → ∞
SELECT * FROM t WHERE a != 'b' AND c IN (1,2); -- \o/ ~`!@#$%^&*()_+-={}[]|:;?,./
https://example.org/a_b?q=%C3%A9&x=1#top  user@mail.example  C:\dir\file.txt
""".strip().split("\n"),
    "def f(x: int) -> str:\n\treturn f\"{x:>10}\"  # ok\n\n\nif __name__ == '__main__':\n    f(3)",
    "for (int i = 0; i < n; ++i) { a[i] <<= 2; }\t/* done */\r\n",
    '<html>\n  <body class="x"><table><tr><td>1</td></tr></table></body>\n</html>',
    '{"key": [null, true, -1.5e-10]}\n- item\n  * nested\n1. one\n\n> quote',
    "zalgo: t̷̰́ë̸́s̵t  ﬁ ﬂ ﷺ Å Å é é \ufeff\u200b\u00a0\u3000\u2028",
]


def varied_strings(count: int, pieces: list, *, literal_space_marks: bool, control: bool) -> list[str]:
    """Strings of sentences, pieces, whitespace, symbols, emoji and stray code points, joined in all ways."""
    rng = random.Random(20261122)
    normal = [piece.text.replace("▁", " ") for piece in pieces if piece.kind == Kind.NORMAL]
    kinds = {Kind.USER_DEFINED, Kind.CONTROL, Kind.UNKNOWN} if control else {Kind.USER_DEFINED}
    symbols = [piece.text for piece in pieces if piece.kind in kinds and (literal_space_marks or "▁" not in piece.text)]

    def code_point() -> str:
        low, high = rng.choice([(0, 0x20), (0x20, 0x250), (0x250, 0x3000), (0x3000, 0xD800), (0xE000, 0x110000)])
        return chr(rng.randrange(low, high))

    def slice_of_sentence() -> str:
        words = rng.choice(SENTENCES)
        start = rng.randrange(len(words))
        return words[start : start + rng.randrange(1, 40)]

    makers = [
        slice_of_sentence,
        slice_of_sentence,
        lambda: rng.choice(normal),
        lambda: rng.choice(normal),
        lambda: rng.choice(symbols),
        lambda: rng.choice(" \n\t") * rng.randrange(1, 70),
        lambda: "".join(rng.choice(" \n\t\r") for _ in range(rng.randrange(1, 12))),
        lambda: rng.choice("a.-=ы的😀") * rng.randrange(1, 50),
        lambda: str(rng.randrange(10 ** rng.randrange(1, 20))),
        code_point,
    ]
    if literal_space_marks:
        makers.append(lambda: "▁" * rng.randrange(1, 40))
    joined = ["".join(rng.choice(makers)() for _ in range(rng.randrange(1, 20))) for _ in range(count - len(SENTENCES))]
    return SENTENCES + joined


def test_tokenizer_json_equals_the_published_one(real):
    """Vocabulary, merges in their order, added tokens, normalizer, post-processor and decoder."""
    assert json.loads(real.ours.read_text("utf-8")) == json.loads(real.published.read_text("utf-8"))


def test_ids_equal_the_published_tokenizers_on_10000_strings(real):
    strings = varied_strings(10_000, read_sentencepiece(real.model), literal_space_marks=True, control=True)
    ids = real.converted(strings).input_ids
    assert ids == [encoding.ids for encoding in Tokenizer.from_file(str(real.published)).encode_batch(strings)]
    assert len(set(strings)) > 9_900
    assert len({token for sequence in ids for token in sequence}) > 20_000  # the strings are varied


def test_ids_equal_sentencepieces_own(real):
    """Where both mean the same thing: SentencePiece takes a literal U+2581 for a space, and <bos> for plain text."""
    strings = varied_strings(3_000, read_sentencepiece(real.model), literal_space_marks=False, control=False)
    expected = SentencePieceProcessor(model_file=str(real.model)).encode(strings)
    assert real.converted(strings, add_special_tokens=False).input_ids == expected


def test_text_survives_the_round_trip(real):
    for sentence in SENTENCES:
        assert real.converted.decode(real.converted(sentence).input_ids, skip_special_tokens=True) == sentence


def test_well_known_ids(real):
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>", "\n\n", "\n\n\n"]
    tokens += ["<start_of_image>", "<end_of_image>", "<image_soft_token>"]
    expected = [0, 1, 2, 3, 4, 105, 106, 108, 109, 255_999, 256_000, 262_144]
    assert real.converted.convert_tokens_to_ids(tokens) == expected
