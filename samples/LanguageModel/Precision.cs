namespace LanguageModel;

/// <summary>The type of weights and activations; the optimizer keeps fp32 weights in every case.</summary>
internal enum Precision
{
    Fp32,
    Bf16,
    Fp16,
}
