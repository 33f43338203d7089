// Reads a program as vrnn_fast/cell/encode.py encodes it.
#pragma once

#include <vector>

#include "program.h"

namespace vrnn {

// Owns what a Program points to.
class DecodedProgram {
  public:
    // Throws std::invalid_argument if the code is not a whole program over `parameters` parameters.
    DecodedProgram(const std::vector<int64_t>& code, const std::vector<double>& constants, int64_t parameters);
    DecodedProgram(const DecodedProgram&) = delete;
    DecodedProgram& operator=(const DecodedProgram&) = delete;

    Program program;
    double flops_per_row = 0;  // forward, multiplications and additions of the dense stages

  private:
    std::vector<Buffer> buffers_;
    std::vector<Stage> stages_;
    std::vector<Block> blocks_;
    std::vector<Term> terms_;
};

}  // namespace vrnn
