"""How the shipped checkpoint was made, in the order of RESULTS.md.

art, sprites, words.txt  things and the npm packages that show them; their drawings; short words
render                  drawings, shapes and letters on pictures of 64x64, with what is where
wording, questions      sentences; what is asked about a picture, and the answers
pictures, chats         pictures with questions; chats about them
tokenizer               a small tokenizer of Gemma 3's form
model, targets          the model under the int4 grid; what its vision tower is taught beside words
data, train             batches; training
evaluate                the table of skills
flax_export, convert    the trained model -> a Kaggle-layout checkpoint -> the files at the top level
examples                the pictures of examples/ and the model's answers
"""
