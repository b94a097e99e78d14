"""How the shipped checkpoint was made, in the order of RESULTS.md.

art, sprites, words.txt, long_words.txt  things and the npm packages that show them; their drawings; words to read
render, lettering, paint  drawings, shapes and letters on pictures of 64x64, with what is where; colors, other styles
wording, synonyms       nouns in sentences; other words for them, their kinds, what everybody knows of them
pictures, questions     pictures, and the forms of questions that the exam asks about them
further, untold         questions beside these forms; those that no picture answers
phrasebook, phrases.txt  questions in people's own words, by intent, written by hand
spoken, finer           how a picture answers them
facts, facts.txt        what everybody knows of the things and no picture shows
chats, talks            the exam's chats; free ones, about up to three pictures
follow_ups, albums      what is asked next about the same picture; what about several
rewording, remarks.txt  a question as different people type it, and what they say besides
small_talk, small_talk.txt  what else they type
tokenizer               a small tokenizer of Gemma 3's form
model, targets          the model under the int4 grid; what its vision tower is taught beside words
data, feeding           batches; processes that draw them
optimizers, training, train  Muon and AdamW; the two stages; the command
average                 a run and what it began with, as one model
skills, exam, asking, evaluate  the table of skills: questions, answers, what is right
free_chats              200 chats written by hand, for evaluation only, 380 for tuning, and their judge
weights, flax_export, shipping, convert  the trained model -> a Kaggle-layout checkpoint -> the files at the top level
examples, gallery       the pictures of examples/ and the model's answers
"""
