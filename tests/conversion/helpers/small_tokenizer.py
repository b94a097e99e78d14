"""A SentencePiece model of Gemma's kind that is small enough to know its ids by heart."""

from sentencepiece.sentencepiece_model_pb2 import ModelProto

SYMBOLS = [
    "<mask>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<start_of_image>",
    "<end_of_image>",
    "\n",
    "\n\n",
    "▁▁",
    "<td>",
]
WORDS = ["bc", "ab", "▁a"]  # best first
LETTERS = ["▁", "a", "b", "c"]


def small_model() -> ModelProto:
    model = ModelProto()
    for text, kind in (("<pad>", 3), ("<eos>", 3), ("<bos>", 3), ("<unk>", 2)):
        model.pieces.add(piece=text, score=0, type=kind)
    for text in SYMBOLS:
        model.pieces.add(piece=text, score=0, type=ModelProto.SentencePiece.USER_DEFINED)
    for byte in range(256):
        model.pieces.add(piece=f"<0x{byte:02X}>", score=0, type=ModelProto.SentencePiece.BYTE)
    for score, text in enumerate(WORDS + LETTERS):
        model.pieces.add(piece=text, score=-score)  # NORMAL is the default and is not written
    model.trainer_spec.model_type = model.trainer_spec.BPE
    model.trainer_spec.byte_fallback = True
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    return model


IDS = {piece.piece: index for index, piece in enumerate(small_model().pieces)}
