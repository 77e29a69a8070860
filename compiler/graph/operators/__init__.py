"""llmc.compiler.graph.operators: the llmc operators, one file each, with bodies in standard ONNX."""
