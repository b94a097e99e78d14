// Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
//
// The int4 kernels for CPUs. `make kernels` packs these files into int4_cpu_source.py, which travels with a model and
// is compiled on the user's machine.
//
// All of them are one translation unit, read from top to bottom. What knows an instruction set stands in one file of
// vectors; the rest is one text. A further instruction set is a further such file, chosen here, and its compiler flags
// in int4_cpu_build.py. It defines
//
//   floats, ints, LANES          vectors of so many float32 or int32, on which C's +, -, *, /, & and shifts work
//   load ... store_bytes         the elementary operations on them, under the names that avx2.h has
//   AT_ONCE, STREAMS, dot        few rows: how many `dot` takes, or of one row how many blocks of outputs; the products
//   BF16_CELLS                   many rows, scores: that a lane multiplies two bfloat16 at once; else float_cells.h has
//     cell ... store_weights     what a lane multiplies at once, and codes made into it
//     store_cells_of_rows        columns made into cells
//   ROWS                         many rows: how many a register tile has
//   FIXED_TILES                  many rows: that tiles are in fixed point, multiplied by the codes; else they are cells
//   HAS_PAIRS                    squares, dense.h: that a lane multiplies two 16-bit integers at once
//     store_pairs, add_pairs     how it does, for FIXED_TILES too

#include "interface.h"
#include "base.h"

#if defined(AVX512_BF16) || defined(AVX512_VNNI) || defined(AVX512)
#include "avx512.h"
#elif defined(AVX2_VNNI) || defined(AVX2)
#include "avx2.h"
#elif defined(__ARM_NEON)
#include "neon.h"
#endif
#ifndef BF16_CELLS
#include "float_cells.h"
#endif

#include "matrix.h"
#include "few_rows.h"
#include "cell_tiles.h"
#ifdef FIXED_TILES
#include "fixed_tiles.h"
#endif
#ifdef HAS_PAIRS
#include "pairs.h"
#endif
#include "many_rows.h"
#include "dense.h"
#include "elementwise.h"
#include "attention.h"
#ifdef HAS_PAIRS
#include "square.h"
#endif
#include "flash.h"
#include "decoder_layer.h"

// Python compares these with what ctypes makes of its own declarations.
#define EXPORT_SIZE(type) const int32_t int4_sizeof_##type = sizeof(type)
EXPORT_SIZE(Matrix);
EXPORT_SIZE(Product);
EXPORT_SIZE(Dense);
EXPORT_SIZE(Dequantize);
EXPORT_SIZE(Rows);
EXPORT_SIZE(PackAwq);
EXPORT_SIZE(PackAwqs);
EXPORT_SIZE(PackRows);
EXPORT_SIZE(Recover);
EXPORT_SIZE(ReadAhead);
EXPORT_SIZE(Norm);
EXPORT_SIZE(Gated);
EXPORT_SIZE(Layer);
EXPORT_SIZE(Step);
EXPORT_SIZE(Steps);
EXPORT_SIZE(Attention);
