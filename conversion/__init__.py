"""From a checkpoint to a Hugging Face repo, and from that to other formats.

    source -> plan -> codes and scales -> format -> repo -> export

The house, from the roof down. A file imports only files below its own line, also where it imports late: an import
inside a function keeps a heavy library out of verbs that do without it. tests/conversion/test_rooms.py asserts that;
to see the arrows: `grep -rnE "^ *(from|import) conversion" conversion/`.

    commands/convert.py             `convert`: a checkpoint becomes a repo
    commands/export.py              `export`: a repo becomes another format's
    commands/plan.py                `plan`: what a conversion would do; how options are checked
    commands/verify.py              `verify`: proof of a finished repo
    commands/quality.py             `quality`: perplexity on a text
    hub_upload.py                   --push-to-hub
    quality.py                      perplexity and bits per byte

  An AWQ repo becomes another format's

    export/export.py                the flow of every export
    export/read_back.py             what was written, compared with the repo it was made from
    export/gguf_exporter.py         GGUF files ...
    export/gguf_language.py         ... their language model
    export/gguf_vision.py           ... their vision tower
    export/gguf_vocabulary.py       ... their tokenizer
    export/gguf_file.py             ... written tensor by tensor
    export/hub_exporter.py          another format of Hugging Face repos

  A checkpoint becomes a repo: to understand a conversion, read from here down

    convert/pipeline.py             the conversion from end to end
    convert/completion.py           after the last leaf: scales, card, index, manifest
    convert/manifest.py             what conversion.json says
    convert/scale_dtype.py          the dtype of the scales
    convert/side_file.py            scales of an embedding whose source has floats alone
    convert/leaf_conversion.py      parts become tensors, several at a time, and are noted shard by shard
    convert/leaf_writer.py          codes, scales and floats become tensors in a shard
    convert/disk_space.py           whether a disk can hold it
    convert/plan.py                 all that is known before the first weight is read
    convert/adoption.py             files of an AWQ repo that are taken over as they are

  Proof of a repo

    proof/verify.py                 all that can be proven
    proof/checkpoint_proof.py       against its source, number by number
    proof/repo_proof.py             against the AWQ repo it was made from
    proof/file_check.py             against its manifest
    proof/damage.py                 what is wrong inside a file of weights
    proof/manifest.py               conversion.json, read
    proof/tally.py                  what was compared, and what differs

  Sources: what a conversion reads

    source/opening.py               a path -> its source, whatever kind it is
    source/gguf_source.py           GGUF files as a source
    source/gguf_files.py            which files: parts of a split one, the vision tower's
    source/gguf_tokenizer.py        the tokenizer in their metadata
    source/hub_source.py            an AWQ or compressed-tensors repo as a source
    source/stored_linear.py         ... its int4 linears, groups of 64, 128 and more included
    source/quantization.py          ... what its quantization_config says
    source/flax_source.py           a Flax checkpoint as a source
    source/leaf_codes.py            a leaf -> blocks of codes and scales
    source/rounded_grid.py          floats that are rounded products -> scales
    source/int4_grid.py             floats on a grid -> codes and scales
    source/flax_checkpoint.py       leaves of a checkpoint, from metadata alone
    source/zarr_leaf.py             one leaf: shape first, bytes on demand
    source/stored_bytes.py          stored values, piece by piece, and errors in plain words
    source/source_hashes.py         source files against given hashes
    source/source.py                the interface of every source: its parts, and blocks of them
    source/source_files.py          the files of a source, and what tells one from another
    arguments.py                    what the user names: found, or refused with what it is
    source/kaggle.py                downloads from Kaggle
    source/hub.py                   downloads from the Hugging Face Hub
    source/donor.py                 tensors that a checkpoint lacks

  Repos, read back

    repos/stored_repo.py            the interface, and the readers by format
    repos/awq_repo.py               AWQ
    repos/hub_format_repo.py        other formats of Hugging Face repos
    repos/gguf_repo.py              GGUF
    repos/gguf_config.py            the configuration that GGUF files tell
    repos/tensor_files.py           the safetensors files of a repo, in either key layout, with an index or without
    repos/safetensors_file.py       one safetensors file

  What is written, and where

    small_files/model_card.py       README.md
    small_files/guide.py            its sections on serving, training, other engines and memory
    small_files/repo_files.py       configuration, code, notice, tokenizer as it is
    small_files/tokenizer.py        tokenizer made from SentencePiece
    small_files/provenance.py       what weights are, by kind of source
    folders/work_folder.py          a repo made in a work folder, published in one go
    shards.py                       safetensors files, written in any order
    folders/folder_lock.py          one process at a time in a folder
    folders/places.py               where an output may lie
    folders/files.py                what operating and file systems differ in

  The ground: names, shapes and numbers

    facts.py                        what was found out about a part and its scales
    layout.py                       which tensors a part becomes, and where the blocks of a leaf belong
    sizes.py                        the published sizes and their configurations
    name_map.py                     the leaves of a model <-> transformers tensors
    leaf_rules.py                   every kind of leaf, its tensors, and how its axes move
    formats/__init__.py             how int4 weights lie on disk: the interface
    formats/awq.py                  AWQ
    formats/embedding.py            the embedding of an AWQ repo
    formats/compressed_tensors.py   compressed-tensors
    formats/mlx.py                  MLX
    formats/q4_0.py                 Q4_0, the blocks of GGUF
    formats/words.py                eight codes in an int32
    formats/gguf_names.py           llama.cpp's names of tensors
    formats/gguf_reader.py          a GGUF file, read
    part.py                         one piece of a source, and the tensors that it becomes
    tensor_spec.py                  name, dtype and shape of a tensor
    codes.py                        what an int4 weight is
    identify.py                     what a path, a name or an address is
    options.py                      what a conversion can be asked for
    errors.py                       errors that a user meets
"""
